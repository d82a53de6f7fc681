"""What ours is measured against: exact sums, the published procedures, other revisions."""
