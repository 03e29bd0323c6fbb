"""Turns MultiModel resources into Kubernetes objects and tells the truth about them in their status."""
