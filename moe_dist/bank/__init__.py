"""Banks: many small networks of different widths trained together in one process on one device.

bank.py divides the members into stacks, stack.py trains one stack, network.py is a stack's forward pass, optimisers.py
its update, and batches.py makes its batches. Methods and searches may import this room; it imports neither of them, nor
Ray, nor DeepSpeed.
"""
