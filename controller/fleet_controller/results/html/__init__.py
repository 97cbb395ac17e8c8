"""The matrix as one HTML file that needs no network: heat maps, charts, a section a host, filters, commands.

content.py says what is shown, page.py puts it together; each other file draws one kind of section.
"""
