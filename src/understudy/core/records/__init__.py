"""Plain data without torch: errors, metrics, configurations, run folders, scorecards."""
