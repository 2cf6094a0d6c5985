from __future__ import annotations

import pytest

from lwqc.errors import ConstraintError, InputError, LwqcError


@pytest.mark.parametrize(("kind", "code"), [(LwqcError, 1), (InputError, 2), (ConstraintError, 3)])
def test_exit_codes(kind: type[LwqcError], code: int) -> None:
    assert kind.exit_code == code
    assert issubclass(kind, LwqcError)
