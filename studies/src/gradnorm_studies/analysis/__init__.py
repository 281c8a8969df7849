"""Analysis of finished runs: metrics, claims, figures, reports."""
