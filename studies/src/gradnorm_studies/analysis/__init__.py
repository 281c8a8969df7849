"""What runs measured, and what it means: metrics, claims, figures, reports."""
