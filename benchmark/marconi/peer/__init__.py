"""SGLang's own tests, run with our cache in the place of stock's."""
