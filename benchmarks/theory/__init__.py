"""The theory of top-p subsets, executed on MDPs small enough to be solved exactly."""
