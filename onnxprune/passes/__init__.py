"""The passes: analyses of the channel graph, selection, and the two rewrites (masked reference and pruned model)."""
