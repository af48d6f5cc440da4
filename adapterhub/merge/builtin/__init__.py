"""The methods that come with adapterhub, as data: one file a family."""

from adapterhub.merge.builtin import elementwise, geometric, sums

BUILT_IN = (*sums.SPECS, *geometric.SPECS, *elementwise.SPECS)
