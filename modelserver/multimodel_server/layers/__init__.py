"""The parts a decoder is composed of; each knows sizes and tensors, never a model's name."""
