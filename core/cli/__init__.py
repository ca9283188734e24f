"""The command line. Commands are imported when used, so that ``distillzoo --help`` answers at once."""
