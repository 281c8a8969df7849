"""The machinery of all studies: settings, training, results, executors, progress."""
