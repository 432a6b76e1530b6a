"""Parts of momentum_resnet.py."""
