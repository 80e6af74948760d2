"""Generates the README of the chart, and the NetworkPolicies that are applied by hand."""
