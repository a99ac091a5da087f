"""Mixture of experts: router, dispatch, experts and balance as four things that compose."""
