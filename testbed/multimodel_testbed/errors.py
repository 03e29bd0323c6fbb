"""What can go wrong with the test cluster, in words that say what to do."""


class TestbedError(Exception):
    """The test cluster cannot do what was asked; the message says why and how to go on."""

    __test__ = False  # pytest would collect the class for its name


class MissingBinaryError(TestbedError):
    """A binary is neither given nor cached, and cannot be built here."""


class MissingPackagesError(TestbedError):
    """Programs of the operating system are missing; the message holds the command that installs them."""


class StartError(TestbedError):
    """A process of the cluster ended, or was not ready in time; the message holds the end of its log."""
