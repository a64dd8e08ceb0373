"""Adapters: few trained weights beside a frozen backbone."""
