"""What every study needs: settings, training, results, executors, progress."""
