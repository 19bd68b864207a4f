from ..core.upstream_surfaces import check_installed


# The trainers stand on what TRL and transformers do not promise to keep: releases that were not tested are named.
check_installed()
