"""Parts of a run that Composer calls: mixture updates, export at the end, reports, monitors."""
