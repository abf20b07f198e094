"""The parts of `model.py`, which stands beside this folder and imports it by this name: Triton puts the folder of model.py
last on its path, where `settings` or `tensors` might be anyone's."""
