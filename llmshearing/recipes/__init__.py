"""The two run files of a real run, written from the source, the prepared data and the hardware."""
