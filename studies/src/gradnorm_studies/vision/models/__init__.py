"""The two network families of §5: SegNet and FCN, all shared up to the last layer."""
