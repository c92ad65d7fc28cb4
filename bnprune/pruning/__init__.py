"""From a channel graph to a smaller network: scores, selection, plan, surgery, proof."""
