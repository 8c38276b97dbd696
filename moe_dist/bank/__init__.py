"""Banks: many small networks of different widths trained together in one process on one device.

bank.py divides members among stacks; stack.py trains one stack; network.py is a stack's forward pass, optimisers.py its
update, batches.py what it is fed; memory.py tells how much of it fits. Methods and searches may import this room; it
knows neither of them, nor Ray, nor DeepSpeed.
"""
