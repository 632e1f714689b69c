"""How the losses of `mast3r_sfm.alignment.losses` are evaluated and minimised fast, and the same on every run.

packing, segments       matches as rectangles of numbers, and sums over them in a fixed order
cameras, gradients      what the losses read of the cameras, and how its gradient gets back to the parameters
slabs                   what the evaluators share: loops over slabs of chunks, arithmetic in place
coarse_loss, fine_loss, fallback_loss
                        the evaluators: value and gradient, written by hand
adam, recording         the optimizer on one flat vector, and an iteration as a CUDA graph

Autograd would keep several tensors per operation with as many rows as there are matches. The evaluators stop at
the gradient with respect to one matrix per view and one depth per anchor, which is small; autograd takes it from
there. Tests hold every evaluator to the value and the autograd gradient of its definition.
"""
