"""Draws the flow charts of the pages: the few forms of mermaid's that they use, as SVG.

The longest path is a straight line. What only feeds one of its nodes stands above that node; all else stands below.
Each chart is drawn twice, from left to right and, for a narrow screen, from top to bottom; page.css shows one.
"""

import re
from html import escape

NODE = re.compile(r'\s*(?P<name>\w+)(?:\["(?P<box>[^"]*)"\]|\(\("(?P<circle>[^"]*)"\)\)|\[\("(?P<store>[^"]*)"\)\])?')
EDGE = re.compile(r'\s*(?:--(?: "(?P<label>[^"]*)" --)?>|(?P<dashed>-\.)(?: "(?P<dashed_label>[^"]*)" \.)?->)')
LINE, CHARACTER, PAD, GAP = 19, 7.6, 11, 30  # height of a line, mean width of a character, inside a box, between boxes


def parse(source):
    """Nodes {name: (shape, lines)} and edges [(from, to, label, dashed)] in the order in which they stand there."""
    nodes, edges = {}, []
    head, *lines = source.strip().splitlines()
    assert head == "flowchart LR", head
    for line in lines:
        last, edge, at = None, None, 0
        while at < len(line):
            found = NODE.match(line, at)
            assert found, f"not understood: {line[at:]}"
            shape = next((kind for kind in ("box", "circle", "store") if found[kind] is not None), None)
            if shape:
                nodes[found["name"]] = shape, found[shape].split("<br>")
            if edge:
                edges.append((last, found["name"], edge["label"] or edge["dashed_label"], bool(edge["dashed"])))
            last, at = found["name"], found.end()
            edge = EDGE.match(line, at)
            assert edge or at == len(line), f"not understood: {line[at:]}"
            at = edge.end() if edge else at
    return nodes, edges


def place(nodes, edges):
    """{name: (column, row)}, and the edges that lead back."""
    after, back = {name: [] for name in nodes}, set()

    def paths(name):
        return [[name, *path] for next_one in after[name] for path in paths(next_one)] or [[name]]

    for a, b, *_ in edges:
        if any(a in path for path in paths(b)):
            back.add((a, b))
        else:
            after[a].append(b)
    before = {name: [a for a in nodes if name in after[a]] for name in nodes}
    main = max((path for name in nodes for path in paths(name)), key=len)
    at = {name: (column, 0) for column, name in enumerate(main)}
    for name in nodes:
        if name in at:
            continue
        near = before[name] + after[name]
        if len(near) == 1 and near[0] in main:
            at[name] = at[near[0]][0], -1 if after[name] else 1
        elif before[name]:
            at[name] = max(at[a][0] for a in before[name]) + 1, 1
        else:
            at[name] = max(0, min(at[b][0] for b in after[name]) - 1), 1
    assert len(set(at.values())) == len(at), "two nodes on one place"
    return at, back


def draw(source, down):
    """The chart as SVG. Along is the direction of the arrows, across the other; down swaps x and y."""
    nodes, edges = parse(source)
    at, back = place(nodes, edges)
    size = {}
    for name, (shape, lines) in nodes.items():
        width = max(map(len, lines)) * CHARACTER + 2 * PAD
        height = len(lines) * LINE + 2 * PAD - 3
        width = max(width, height) if shape == "circle" else width
        size[name] = (height, width) if down else (width, height)  # along, across
    labels = {at[a][0]: label for a, b, label, _ in edges if label and at[b] == (at[a][0] + 1, at[a][1])}
    middle, start = {}, 0
    for column in range(1 + max(column for column, _ in at.values())):
        extent = max(size[name][0] for name in nodes if at[name][0] == column)
        middle[column] = start + extent / 2
        label = labels.get(column)
        start += extent + (GAP if not label else LINE + GAP if down else len(label) * CHARACTER + GAP)
    length = start - GAP
    across = max(across for _, across in size.values())
    pitch = across + (18 if down else 34)
    where = {name: (middle[column], row * pitch) for name, (column, row) in at.items()}

    def xy(along, over):
        return f"{over:.0f} {along:.0f}" if down else f"{along:.0f} {over:.0f}"

    shapes, lowest = [], max(row for _, row in at.values()) * pitch + across / 2
    for a, b, label, dashed in edges:
        (a_along, a_over), (b_along, b_over) = where[a], where[b]
        (column, row), (to_column, to_row) = at[a], at[b]
        ends = size[a][0] / 2, size[a][1] / 2, size[b][0] / 2, size[b][1] / 2
        between = [n for n in nodes if at[n][1] == row == to_row and min(column, to_column) < at[n][0]
                   < max(column, to_column)]
        if (a, b) in back or between:  # around what lies between, below
            wide = len(label or "") * CHARACTER if down else 0  # of the label, which must not cover what lies between
            level = across / 2 + (10 + wide / 2 if down else (pitch - across) / 2)
            points = [(a_along, a_over + ends[1]), (a_along, level), (b_along, level), (b_along, b_over + ends[3])]
            text = (a_along + b_along) / 2, level
            lowest = max(lowest, level + wide / 2 + 10)
        elif column == to_column:
            side = 1 if b_over > a_over else -1
            points = [(a_along, a_over + side * ends[1]), (b_along, b_over - side * ends[3])]
            text = a_along, (a_over + b_over) / 2
        elif row == to_row:
            points = [(a_along + ends[0], a_over), (b_along - ends[2], b_over)]
            text = (points[0][0] + points[1][0]) / 2, a_over
        elif row:  # along its own row, then to the main one
            side = 1 if b_over > a_over else -1
            points = [(a_along + ends[0], a_over), (b_along, a_over), (b_along, b_over - side * ends[3])]
            text = points[1]
        else:  # away from the main row, then along
            side = 1 if b_over > a_over else -1
            points = [(a_along, a_over + side * ends[1]), (a_along, b_over), (b_along - ends[2], b_over)]
            text = points[1]
        shapes.append(f'<path class="edge{" dashed" * dashed}" d="M{" L".join(xy(*point) for point in points)}"/>')
        (u, v), (to_u, to_v) = points[-2:]
        du, dv = (to_u > u) - (to_u < u), (to_v > v) - (to_v < v)  # the head: 8 long, 8 wide
        head = [(to_u, to_v), (to_u - 8 * du - 4 * dv, to_v - 8 * dv - 4 * du),
                (to_u - 8 * du + 4 * dv, to_v - 8 * dv + 4 * du)]
        shapes.append(f'<path class="head" d="M{" L".join(xy(*point) for point in head)}Z"/>')
        if label:
            shapes.append(words([label], *map(float, xy(*text).split()), "label"))
    for name, (shape, lines) in nodes.items():
        x, y = map(float, xy(*where[name]).split())
        width, height = size[name][::-1] if down else size[name]
        if shape == "circle":
            shapes.append(f'<ellipse class="node" cx="{x:.0f}" cy="{y:.0f}" rx="{width / 2:.0f}" '
                          f'ry="{height / 2:.0f}"/>')
        else:
            shapes.append(f'<rect class="node {shape}" x="{x - width / 2:.0f}" y="{y - height / 2:.0f}" '
                          f'width="{width:.0f}" height="{height:.0f}" rx="{5 if shape == "box" else 14}"/>')
        shapes.append(words(lines, x, y))
    highest = min(row for _, row in at.values()) * pitch - across / 2
    box = ((highest, -2, lowest - highest, length + 4) if down else (-2, highest - 2, length + 4, lowest - highest + 4))
    says = "; ".join(f"{said(nodes[a])} to {said(nodes[b])}" + (f" ({label})" if label else "")
                     for a, b, label, _ in edges)
    return (f'<svg class="{"down" if down else "along"}" role="img" aria-label="Diagram: {escape(says)}" '
            f'viewBox="{" ".join(f"{number:.0f}" for number in box)}" width="{box[2]:.0f}" height="{box[3]:.0f}">'
            + "".join(shapes) + "</svg>")


def said(node):
    return " ".join(node[1])


def words(lines, x, y, kind="name"):
    first = y - (len(lines) - 1) * LINE / 2 + 5
    return "".join(f'<text class="{kind}" x="{x:.0f}" y="{first + i * LINE:.0f}">{escape(line)}</text>'
                   for i, line in enumerate(lines))


def chart(source):
    return f'<div class="chart">{draw(source, down=False)}{draw(source, down=True)}</div>\n'
