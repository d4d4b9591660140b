"""What every backbone promises, as questions to one backbone; `check_backbone` asks them.

A contract is a function of a `Subject`: it returns a note or nothing, raises `ContractError` with what is wrong and
what to do about it, or `NotAskedError` with why it does not apply. `tests/test_backbone_contracts.py` holds the same
promises for the backbones that come with this package. Adding a contract is adding a decorated function.
"""
