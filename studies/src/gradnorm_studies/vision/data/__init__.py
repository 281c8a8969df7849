"""The data sets of the vision studies; every one gives `Sample`s."""
