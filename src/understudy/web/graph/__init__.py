"""A graph as one page: the picture, every node in words, what its figures mean."""

from understudy.web.graph.page import render as render
