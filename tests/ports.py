"""Ports for what a test starts."""

import random
import socket


def free_port() -> int:
    """
    A port of this machine that nobody listens to.

    Below those that the kernel hands out for connections (from 32768 on): one of them may be another test's before the
    server that it was meant for has started.
    """
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
