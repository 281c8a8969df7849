"""Running of studies: settings, runs, pools, results, progress."""
