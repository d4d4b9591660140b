"""Audio file -> mono float32 waveform. (Signatures; see the tests for the contract.)"""
