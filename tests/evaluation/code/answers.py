"""Shapes that answers have, each with the program that a careful reader would take from it.

Prompts are HumanEval's (MIT, OpenAI) and MBPP's (CC BY 4.0, Google).
"""

from typing import NamedTuple


class Case(NamedTuple):
    shape: str
    style: str
    prompt: str
    entry_point: str | None
    answer: str
    program: str


LIST = "from typing import List\n\n\n"
FILTER = (
    LIST
    + '''def filter_by_substring(strings: List[str], substring: str) -> List[str]:
    """ Filter an input list of strings only for ones that contain given substring
    >>> filter_by_substring([], 'a')
    []
    >>> filter_by_substring(['abc', 'bacd', 'cde', 'array'], 'a')
    ['abc', 'bacd', 'array']
    """
'''
)
STRLEN = '''

def strlen(string: str) -> int:
    """ Return length of given string
    >>> strlen('')
    0
    >>> strlen('abc')
    3
    """
'''
POLY = '''import math


def poly(xs: list, x: float):
    """
    Evaluates polynomial with coefficients xs at point x.
    return xs[0] + xs[1] * x + xs[1] * x^2 + .... xs[n] * x^n
    """
    return sum([coeff * math.pow(x, i) for i, coeff in enumerate(xs)])


'''
ZERO = (
    POLY
    + '''def find_zero(xs: list):
    """ xs are coefficients of a polynomial.
    find_zero find x such that poly(x) = 0.
    >>> round(find_zero([1, 2]), 2) # f(x) = 1 + 2x
    -0.5
    """
'''
)
AREA = '''

def triangle_area(a, h):
    """Given length of a side and high return area for a triangle.
    >>> triangle_area(5, 3)
    7.5
    """
'''
SHARED = '''"""
Write a function to find the shared elements from the given two lists.
assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))
"""
'''
PRIME = '''"""
Write a python function to identify non-prime numbers.
assert is_not_prime(2) == False
"""
'''
SPHERE = '''"""
Write a function to find the volume of a sphere.
assert math.isclose(volume_sphere(10), 4188.790204786391, rel_tol=0.001)
"""
'''
NEWMAN = '''"""
Write a function to find the nth number in the newman conway sequence.
assert sequence(10) == 6
"""
'''
DIGITS = '''"""
Write a function to convert a given tuple of positive integers into a single integer.
assert tuple_to_int((1,2,3))==123
"""
'''

FILTER_BODY = "    return [x for x in strings if substring in x]\n"
FILTER_LOOP = """    result = []
    for string in strings:
        if substring in string:
            result.append(string)
    return result
"""
ZERO_BODY = """    begin, end = -1., 1.
    while poly(xs, begin) * poly(xs, end) > 0:
        begin *= 2.0
        end *= 2.0
    while end - begin > 1e-10:
        center = (begin + end) / 2.0
        if poly(xs, center) * poly(xs, begin) > 0:
            begin = center
        else:
            end = center
    return begin
"""
SIMILAR = """def similar_elements(test_tup1, test_tup2):
    return tuple(set(test_tup1) & set(test_tup2))
"""
IS_NOT_PRIME = """import math


def is_not_prime(n):
    if n <= 1:
        return True
    for i in range(2, int(math.sqrt(n)) + 1):
        if n % i == 0:
            return True
    return False
"""
VOLUME = """import math

def volume_sphere(r):
    return 4 / 3 * math.pi * r ** 3
"""
SEQUENCE_TABS = """def sequence(n):
\tif n == 1 or n == 2:
\t\treturn 1
\treturn sequence(sequence(n - 1)) + sequence(n - sequence(n - 1))
"""
TO_INT = """def tuple_to_int(nums):
    return int("".join(map(str, nums)))
"""
FILTER_WHOLE = "def filter_by_substring(strings: List[str], substring: str) -> List[str]:\n"

HUMAN_EVAL_INSTRUCT = [
    # The turn goes on as it was opened.
    (
        "body, closing fence, prose",
        FILTER,
        "filter_by_substring",
        FILTER_BODY
        + "```\n\nThis function keeps the strings that contain `substring`. For example, `a` is in `abc`.\n",
        FILTER + FILTER_BODY,
    ),
    ("body alone", STRLEN, "strlen", "    return len(string)", STRLEN + "    return len(string)\n"),
    (
        "closing fence behind the last line",
        STRLEN,
        "strlen",
        "    return len(string)```\nThe built-in `len` does it.",
        STRLEN + "    return len(string)\n",
    ),
    (
        "body behind a blank line",
        FILTER,
        "filter_by_substring",
        "\n" + FILTER_LOOP + "\n\n```\n",
        FILTER + "\n" + FILTER_LOOP,
    ),
    (
        "body that starts with comments",
        AREA,
        "triangle_area",
        "    # half of base times height\n    return a * h / 2\n```",
        AREA + "    # half of base times height\n    return a * h / 2\n",
    ),
    (
        "body with a nested function",
        FILTER,
        "filter_by_substring",
        "    def has(x):\n        return substring in x\n\n    return list(filter(has, strings))\n```\n",
        FILTER + "    def has(x):\n        return substring in x\n\n    return list(filter(has, strings))\n",
    ),
    (
        "helper after the body",
        FILTER,
        "filter_by_substring",
        "    return [x for x in strings if has(x, substring)]\n\n\ndef has(x, part):\n    return part in x\n```\n",
        FILTER + "    return [x for x in strings if has(x, substring)]\n\n\ndef has(x, part):\n    return part in x\n",
    ),
    (
        "tests after the body are kept while they compile",
        STRLEN,
        "strlen",
        "    return len(string)\n\n\nif __name__ == '__main__':\n    assert strlen('abc') == 3\n```",
        STRLEN + "    return len(string)\n\n\nif __name__ == '__main__':\n    assert strlen('abc') == 3\n",
    ),
    (
        "usage in a later block",
        STRLEN,
        "strlen",
        "    return len(string)\n```\n\nYou can use it like this:\n\n```python\nprint(strlen('abc'))  # 3\n```\n",
        STRLEN + "    return len(string)\n",
    ),
    (
        "unit tests in a later block that define other functions",
        AREA,
        "triangle_area",
        "    return a * h / 2\n```\n\n```python\ndef test_area():\n"
        "    assert triangle_area(5, 3) == 7.5\n    return True\n```",
        AREA + "    return a * h / 2\n",
    ),
    (
        "a second version later",
        AREA,
        "triangle_area",
        "    return a * h / 2\n```\nOr, shorter:\n```python\ntriangle_area = lambda a, h: a * h / 2\n```",
        AREA + "    return a * h / 2\n",
    ),
    (
        "helpers of the prompt are used",
        ZERO,
        "find_zero",
        ZERO_BODY + "```\nIt bisects until the interval is small.",
        ZERO + ZERO_BODY,
    ),
    (
        "prose behind the body without a fence",
        FILTER,
        "filter_by_substring",
        FILTER_BODY + "\nThis function uses a list comprehension, which is fast.\nIt keeps the order.\n",
        FILTER + FILTER_BODY,
    ),
    (
        "one word behind the body that would compile",
        STRLEN,
        "strlen",
        "    return len(string)\n\nExplanation\n",
        STRLEN + "    return len(string)\n",
    ),
    (
        "an annotation by accident behind the body",
        STRLEN,
        "strlen",
        "    return len(string)\n\nNote: trivial\n",
        STRLEN + "    return len(string)\n",
    ),
    # The whole program, in all places.
    (
        "whole prompt repeated at once",
        FILTER,
        "filter_by_substring",
        FILTER + FILTER_LOOP + "```\n",
        FILTER + FILTER_LOOP,
    ),
    (
        "signature repeated without the import",
        FILTER,
        "filter_by_substring",
        FILTER_WHOLE + FILTER_BODY + "```\n",
        LIST + FILTER_WHOLE + FILTER_BODY,
    ),
    (
        "prose, then a whole program",
        FILTER,
        "filter_by_substring",
        "```\n\nSorry, here is the solution in full:\n\n```python\n" + FILTER + FILTER_LOOP + "```\nIt is linear.",
        FILTER + FILTER_LOOP,
    ),
    (
        "prose in the open fence, then a fence",
        AREA,
        "triangle_area",
        "Sure! The area is half of side times height.\n\n```python\ndef triangle_area(a, h):\n"
        "    return 0.5 * a * h\n```\n",
        "def triangle_area(a, h):\n    return 0.5 * a * h\n",
    ),
    (
        "a new fence with only the function, helpers left out",
        ZERO,
        "find_zero",
        "```python\ndef find_zero(xs: list):\n" + ZERO_BODY + "```\n",
        POLY + "def find_zero(xs: list):\n" + ZERO_BODY,
    ),
    (
        "helper of the prompt written anew",
        ZERO,
        "find_zero",
        "```\ndef poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\ndef find_zero(xs):\n" + ZERO_BODY,
        POLY
        + "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\ndef find_zero(xs):\n"
        + ZERO_BODY,
    ),
    (
        "a fence without a language",
        STRLEN,
        "strlen",
        "Here you go:\n```\ndef strlen(string):\n    return sum(1 for _ in string)\n```",
        "def strlen(string):\n    return sum(1 for _ in string)\n",
    ),
    (
        "a fence of tildes",
        STRLEN,
        "strlen",
        "Here you go:\n~~~python\ndef strlen(string):\n    return len(string)\n~~~",
        "def strlen(string):\n    return len(string)\n",
    ),
    (
        "whole program without any fence behind prose",
        FILTER,
        "filter_by_substring",
        "Let's complete the function.\n\n" + FILTER + FILTER_BODY,
        FILTER + FILTER_BODY,
    ),
    (
        "shell and output blocks around",
        STRLEN,
        "strlen",
        "```\n```bash\npython -m pytest\n```\n```python\ndef strlen(string):\n    return len(string)\n```\n```\n3\n```",
        "def strlen(string):\n    return len(string)\n",
    ),
    (
        "usage before the definition",
        STRLEN,
        "strlen",
        "```\nUsage:\n```python\nprint(strlen('abc'))\n```\nCode:\n```python\n"
        "def strlen(string):\n    return len(string)\n```",
        "def strlen(string):\n    return len(string)\n",
    ),
    (
        "body in a fence of its own",
        AREA,
        "triangle_area",
        "```\nThe body is:\n```python\n    return a * h / 2\n```\n",
        AREA + "    return a * h / 2\n",
    ),
    (
        "a stub first, the function later",
        AREA,
        "triangle_area",
        "    pass\n```\nNow in full:\n```python\ndef triangle_area(a, h):\n    return a * h / 2\n```",
        "def triangle_area(a, h):\n    return a * h / 2\n",
    ),
    (
        "future import must stay first",
        AREA,
        "triangle_area",
        "```python\nfrom __future__ import annotations\n\n"
        "def triangle_area(a: float, h: float):\n    return a * h / 2\n```",
        "from __future__ import annotations\n\ndef triangle_area(a: float, h: float):\n    return a * h / 2\n",
    ),
    (
        "a docstring that holds a fence",
        STRLEN,
        "strlen",
        '```python\ndef strlen(string):\n    """\n    ```\n    strlen("a")\n    ```\n    """\n'
        "    return len(string)\n```",
        'def strlen(string):\n    """\n    ```\n    strlen("a")\n    ```\n    """\n    return len(string)\n',
    ),
    (
        "a fence inside a list item",
        STRLEN,
        "strlen",
        "1. Count:\n   ```python\n   def strlen(string):\n       return len(string)\n   ```\n",
        "def strlen(string):\n    return len(string)\n",
    ),
    # Slips of indentation.
    (
        "first line at column 0",
        FILTER,
        "filter_by_substring",
        FILTER_LOOP.lstrip() + "```\n",
        FILTER + FILTER_LOOP,
    ),
    ("first line one space short", FILTER, "filter_by_substring", FILTER_LOOP[1:] + "```\n", FILTER + FILTER_LOOP),
    ("first line one space over", FILTER, "filter_by_substring", " " + FILTER_LOOP + "```\n", FILTER + FILTER_LOOP),
    (
        "first line of a block statement at column 0",
        FILTER,
        "filter_by_substring",
        "for _ in strings:\n        break\n    return [x for x in strings if substring in x]\n```",
        FILTER + "    for _ in strings:\n        break\n    return [x for x in strings if substring in x]\n",
    ),
    (
        "whole body at column 0",
        FILTER,
        "filter_by_substring",
        "result = []\nfor string in strings:\n    if substring in string:\n"
        "        result.append(string)\nreturn result\n```",
        FILTER + FILTER_LOOP,
    ),
    (
        "whole body at two spaces",
        AREA,
        "triangle_area",
        "  area = a * h\n  return area / 2\n```",
        AREA + "    area = a * h\n    return area / 2\n",
    ),
    (
        "body in tabs",
        FILTER,
        "filter_by_substring",
        FILTER_LOOP.replace("    ", "\t") + "```",
        FILTER + FILTER_LOOP,
    ),
    # Truncated.
    (
        "truncated in a usage example",
        STRLEN,
        "strlen",
        "    return len(string)\n\nprint(strlen('abc'))\nprint(strlen('a",
        STRLEN + "    return len(string)\n\nprint(strlen('abc'))\n",
    ),
    (
        "truncated after an open main block",
        STRLEN,
        "strlen",
        "    return len(string)\n\nif __name__ == '__main__':\n    for word in words:\n        if word:\n",
        STRLEN + "    return len(string)\n",
    ),
    (
        "truncated in a second definition of the function",
        STRLEN,
        "strlen",
        "    return len(string)\n\n" + STRLEN.strip("\n"),
        STRLEN + "    return len(string)\n",
    ),
    (
        "truncated under a decorator",
        STRLEN,
        "strlen",
        "    return len(string)\n\n@cache\n@other\n",
        STRLEN + "    return len(string)\n",
    ),
    (
        "a stray return behind the function",
        STRLEN,
        "strlen",
        "```python\ndef strlen(string):\n    return len(string)\n\nreturn strlen('abc')\n```",
        "def strlen(string):\n    return len(string)\n",
    ),
    (
        "truncated before anything returns: as it stands",
        FILTER,
        "filter_by_substring",
        "    result = []\n    for string in strings:\n        if substring in",
        FILTER + "    result = []\n    for string in strings:\n        if substring in\n",
    ),
    (
        "truncated docstring that swallows the rest",
        AREA,
        "triangle_area",
        '    return a * h / 2\n\n"""\nThe area of a triangle is half of',
        AREA + "    return a * h / 2\n",
    ),
    (
        "whole program truncated in its tests",
        STRLEN,
        "strlen",
        "Sure:\n```python\ndef strlen(string):\n    return len(string)\n\nassert strlen('') == 0\nassert strlen(",
        "def strlen(string):\n    return len(string)\n\nassert strlen('') == 0\n",
    ),
    (
        "first line at column 0 and truncated",
        FILTER,
        "filter_by_substring",
        FILTER_LOOP.lstrip() + "\nprint(filter_by_substring(",
        FILTER + FILTER_LOOP,
    ),
    # Not the function.
    (
        "a method of Solution stays as it is",
        AREA,
        "triangle_area",
        "```\nclass Solution:\n    def triangle_area(self, a, h):\n        return a * h / 2\n```",
        "class Solution:\n    def triangle_area(self, a, h):\n        return a * h / 2\n",
    ),
    ("pass is code", STRLEN, "strlen", "    pass\n```", STRLEN + "    pass\n"),
    (
        "a body that does not compile stays as it is",
        STRLEN,
        "strlen",
        "    return len(string))\n```\n",
        STRLEN + "    return len(string))\n",
    ),
    (
        "entry point left to the prompt",
        AREA,
        None,
        "    return a * h / 2\n```\n```python\ndef main():\n    return triangle_area(1, 2)\n```",
        AREA + "    return a * h / 2\n",
    ),
    # No code.
    ("nothing", STRLEN, "strlen", "", ""),
    ("blanks and an empty fence", STRLEN, "strlen", "\n   \n```\n```python\n\n```\n", ""),
    ("a refusal", STRLEN, "strlen", "I'm sorry, but I can't help with that.\nPlease try something else.", ""),
    ("one word", STRLEN, "strlen", "Done", ""),
    ("a comment alone", STRLEN, "strlen", "    # TODO\n```", ""),
    # Characters.
    (
        "end of turn, then another one",
        STRLEN,
        "strlen",
        "    return len(string)\n```<|im_end|>\n<|im_start|>user\nAnd in C?\n```python\n"
        "def strlen(string):\n    return 7\n```",
        STRLEN + "    return len(string)\n",
    ),
    (
        "end of text glued to the last line",
        STRLEN,
        "strlen",
        "    return len(string)<|endoftext|><|endoftext|>",
        STRLEN + "    return len(string)\n",
    ),
    (
        "opened by a role header",
        STRLEN,
        "strlen",
        "<|im_start|>assistant\n    return len(string)\n```",
        STRLEN + "\n    return len(string)\n",
    ),
    (
        "masks left over",
        STRLEN,
        "strlen",
        "    return <|mask|>len(string)<|mask|>\n```",
        STRLEN + "    return len(string)\n",
    ),
    (
        "Windows line ends",
        FILTER,
        "filter_by_substring",
        FILTER_LOOP.replace("\n", "\r\n") + "```\r\nDone.\r\n",
        FILTER + FILTER_LOOP,
    ),
    (
        "no-break spaces and a zero-width space",
        AREA,
        "triangle_area",
        "\u00a0\u00a0\u00a0\u00a0return a *\u200b h / 2\n```",
        AREA + "    return a * h / 2\n",
    ),
    (
        "a zero-width space inside a string stays",
        STRLEN,
        "strlen",
        "    return len(string.replace('\u200b', ''))\n```",
        STRLEN + "    return len(string.replace('\u200b', ''))\n",
    ),
    ("a null byte", STRLEN, "strlen", "    return\0 len(string)\0\n```", STRLEN + "    return len(string)\n"),
    (
        "a warning is no error",
        STRLEN,
        "strlen",
        "    return len(string) if string is not '\\d' else 2\n```\nOr:\n```python\nstrlen = len\n```",
        STRLEN + "    return len(string) if string is not '\\d' else 2\n",
    ),
    (
        "half of a surrogate pair",
        STRLEN,
        "strlen",
        "    return len(string)  # \ud83d\n```",
        STRLEN + "    return len(string)  #\n",
    ),
]

MBPP_INSTRUCT = [
    ("definition, closing fence, prose", SHARED, "similar_elements", SIMILAR + "```\nSets make this easy.\n", SIMILAR),
    ("imports first", PRIME, "is_not_prime", IS_NOT_PRIME + "```", IS_NOT_PRIME),
    ("docstring repeated", SHARED, "similar_elements", SHARED + SIMILAR + "```\n", SHARED + SIMILAR),
    (
        "a fence with a capital, then the assertion",
        SPHERE,
        "volume_sphere",
        "```Python\n" + VOLUME + "\nassert math.isclose(volume_sphere(10), 4188.79, rel_tol=0.001)\n```\n",
        VOLUME + "\nassert math.isclose(volume_sphere(10), 4188.79, rel_tol=0.001)\n",
    ),
    (
        "helper before the entry point",
        PRIME,
        "is_not_prime",
        "def divides(d, n):\n    return n % d == 0\n\ndef is_not_prime(n):\n"
        "    return n < 2 or any(divides(d, n) for d in range(2, n))\n```",
        "def divides(d, n):\n    return n % d == 0\n\ndef is_not_prime(n):\n"
        "    return n < 2 or any(divides(d, n) for d in range(2, n))\n",
    ),
    ("tabs that compile stay", NEWMAN, "sequence", SEQUENCE_TABS + "```\n", SEQUENCE_TABS),
    ("a space before the first line", SPHERE, "volume_sphere", " " + VOLUME + "```\n", VOLUME),
    ("a byte order mark", DIGITS, "tuple_to_int", "\ufeff" + TO_INT + "```\n", TO_INT),
    (
        "all of it indented",
        DIGITS,
        "tuple_to_int",
        "The code:\n\n    def tuple_to_int(nums):\n        return int(''.join(map(str, nums)))\n",
        "def tuple_to_int(nums):\n    return int(''.join(map(str, nums)))\n",
    ),
    (
        "a lambda bound to the name",
        DIGITS,
        "tuple_to_int",
        "tuple_to_int = lambda nums: int(''.join(map(str, nums)))\n```",
        "tuple_to_int = lambda nums: int(''.join(map(str, nums)))\n",
    ),
    (
        "another name: as it stands",
        DIGITS,
        "tuple_to_int",
        TO_INT.replace("tuple_to_int", "to_int") + "```\n",
        TO_INT.replace("tuple_to_int", "to_int"),
    ),
    (
        "another name first, the right one later",
        DIGITS,
        "tuple_to_int",
        TO_INT.replace("tuple_to_int", "to_int") + "```\nWith the name of the test:\n```python\n" + TO_INT + "```",
        TO_INT,
    ),
    ("no entry point known", DIGITS, None, "It is short.\n```python\n" + TO_INT + "```\n", TO_INT),
    (
        "truncated whole program",
        PRIME,
        "is_not_prime",
        IS_NOT_PRIME + "\n# Test cases\nassert is_not_prime(2) == False\nassert is_not_prime(",
        IS_NOT_PRIME + "\n# Test cases\nassert is_not_prime(2) == False\n",
    ),
    (
        "prose that would compile before the definition",
        DIGITS,
        "tuple_to_int",
        "Solution\n\n" + TO_INT,
        TO_INT,
    ),
    ("llama markers", SPHERE, "volume_sphere", "[/INST]\n" + VOLUME + "```</s>", "\n" + VOLUME),
    ("a sequence start", SPHERE, "volume_sphere", "<s>" + VOLUME + "```\n<|eot_id|>assistant", VOLUME),
    (
        "a strike-through tag in a string is no marker",
        DIGITS,
        "tuple_to_int",
        "def tuple_to_int(nums):\n    return int(str(nums).replace('<s>', '').replace('</s>', ''))\n```",
        "def tuple_to_int(nums):\n    return int(str(nums).replace('<s>', '').replace('</s>', ''))\n",
    ),
    (
        "prose about the function",
        DIGITS,
        "tuple_to_int",
        "To solve this, join the digits.\nThen call int() on them.",
        "",
    ),
]

HUMAN_EVAL_COMPLETION = [
    ("body alone", FILTER, "filter_by_substring", FILTER_BODY, FILTER + FILTER_BODY),
    (
        "another function follows",
        STRLEN,
        "strlen",
        "    return len(string)\n\n\ndef strlen2(string):\n    return 0\n",
        STRLEN + "    return len(string)\n",
    ),
    (
        "a decorated function follows",
        STRLEN,
        "strlen",
        "    return len(string)\n\n@cache\ndef f(x):\n    return x\n",
        STRLEN + "    return len(string)\n",
    ),
    (
        "a class follows",
        AREA,
        "triangle_area",
        "    return a * h / 2\n\nclass A:\n    pass\n",
        AREA + "    return a * h / 2\n",
    ),
    (
        "a comment follows",
        AREA,
        "triangle_area",
        "    return a * h / 2\n# test\nx = 1\n",
        AREA + "    return a * h / 2\n",
    ),
    (
        "a call follows",
        AREA,
        "triangle_area",
        "    return a * h / 2\nprint(triangle_area(1, 2))\n",
        AREA + "    return a * h / 2\n",
    ),
    (
        "main follows",
        AREA,
        "triangle_area",
        "    return a * h / 2\n\nif __name__ == '__main__':\n    import doctest\n    doctest.testmod()\n",
        AREA + "    return a * h / 2\n",
    ),
    (
        "a fence follows",
        AREA,
        "triangle_area",
        "    return a * h / 2\n```\nThe area.\n",
        AREA + "    return a * h / 2\n",
    ),
    (
        "stop words inside the body do not stop",
        FILTER,
        "filter_by_substring",
        "    # keep\n    def has(x):\n        return substring in x\n    if not strings:\n"
        "        return []\n    return [x for x in strings if has(x)]\n\nprint()",
        FILTER + "    # keep\n    def has(x):\n        return substring in x\n    if not strings:\n"
        "        return []\n    return [x for x in strings if has(x)]\n",
    ),
    (
        "an assertion is cut only where it breaks off",
        STRLEN,
        "strlen",
        "    return len(string)\n\nassert strlen('') == 0\nassert strlen('a') ==",
        STRLEN + "    return len(string)\n\nassert strlen('') == 0\n",
    ),
    ("nothing before the first stop", STRLEN, "strlen", "\n\ndef other():\n    return 1\n", ""),
    (
        "a slip of indentation stays",
        FILTER,
        "filter_by_substring",
        FILTER_LOOP.lstrip(),
        FILTER + FILTER_LOOP.lstrip(),
    ),
]

MBPP_COMPLETION = [
    ("definition alone", SHARED, "similar_elements", "\n" + SIMILAR, SHARED + "\n" + SIMILAR),
    (
        "helpers before and after are kept, the next task is not",
        PRIME,
        "is_not_prime",
        "def f(n):\n    return g(n)\n\ndef is_not_prime(n):\n    return f(n)\n\ndef g(n):\n    return n != 2\n"
        + SHARED
        + SIMILAR,
        PRIME + "def f(n):\n    return g(n)\n\ndef is_not_prime(n):\n    return f(n)\n\ndef g(n):\n    return n != 2\n",
    ),
    (
        "a class before the entry point is kept, assertions are cut",
        DIGITS,
        "tuple_to_int",
        "\nclass Base:\n    ten = 10\n\n" + TO_INT + "assert tuple_to_int((1,2,3))==123\n",
        DIGITS + "\nclass Base:\n    ten = 10\n\n" + TO_INT,
    ),
    ("prints are cut", SPHERE, "volume_sphere", VOLUME + "\nprint(volume_sphere(10))\n", SPHERE + VOLUME),
    ("prose behind it", NEWMAN, "sequence", SEQUENCE_TABS + "\nThe sequence is defined by", NEWMAN + SEQUENCE_TABS),
    ("prose alone", NEWMAN, "sequence", "The sequence is defined by recursion.", ""),
]

CASES = [
    Case(shape, style, *rest)
    for style, cases in [
        ("instruct", HUMAN_EVAL_INSTRUCT),
        ("instruct", MBPP_INSTRUCT),
        ("completion", HUMAN_EVAL_COMPLETION),
        ("completion", MBPP_COMPLETION),
    ]
    for shape, *rest in cases
]
