"""An adapter as mathematics: per module ΔW = s·B·A, and exact algebra on those factors.

Every operation is defined on ΔW and never on A and B apart: (B·R, R⁻¹·A) is the same adapter for every invertible R,
so a result that changes under such a change of gauge is a bug.
"""
