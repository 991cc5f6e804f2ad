"""`python -m aisp.assets`: prepare the embedded models and check every byte of them."""

from aisp.assets.embedded import main

main()
