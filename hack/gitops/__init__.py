"""What GitOps tools report for our objects, by their own libraries."""
