"""Computing notions with hand-written explanations, the differences between some, and reasons.

Only computing.py reads this module.
"""

from __future__ import annotations

# notion -> (what it is, a second sentence)
NOTIONS: dict[str, tuple[str, str]] = {
    "a queue": (
        "A queue is a line of items that wait for their turn.",
        "The item that came first is served first.",
    ),
    "a stack": ("A stack is a pile of items.", "The item that came last is taken first."),
    "a cache": (
        "A cache keeps results that may be needed again.",
        "Reading from it is faster than doing the work a second time.",
    ),
    "prefill": (
        "Prefill is the step that reads the whole prompt at once.",
        "It fills the cache with keys and values.",
    ),
    "decode": (
        "Decode is the step that writes the answer, one token at a time.",
        "Each new token reads the whole cache.",
    ),
    "a GPU": (
        "A GPU is a chip that does many small sums at the same time.",
        "Language models run fast on it.",
    ),
    "a CPU": ("A CPU is the main chip of a computer.", "It runs programs step by step."),
    "Kubernetes": (
        "Kubernetes is a system that runs programs on many machines.",
        "It starts them again when they fail.",
    ),
    "a pod": ("A pod is the smallest thing that Kubernetes runs.", "It holds one or more containers."),
    "a container": (
        "A container is a box for a program and all that it needs.",
        "It runs the same way on every machine.",
    ),
    "a token": (
        "A token is a small piece of text, such as a word or a part of a word.",
        "A model reads and writes tokens.",
    ),
    "a tokenizer": ("A tokenizer cuts text into tokens.", "It also turns tokens back into text."),
    "a language model": (
        "A language model is a program that predicts the next token.",
        "It learns this from a lot of text.",
    ),
    "attention": (
        "Attention lets a token look at the tokens before it.",
        "It decides which of them are important.",
    ),
    "a KV cache": (
        "A KV cache stores the keys and values of tokens that were already read.",
        "So the model does not have to read them again.",
    ),
    "a batch": (
        "A batch is a group of requests that are worked on together.",
        "It makes better use of the GPU.",
    ),
    "a router": (
        "A router sends each request to the right worker.",
        "It looks at the length of the prompt and at the load.",
    ),
    "a worker": ("A worker is a process that does the real work.", "In twolane it runs a model on one GPU."),
    "a scheduler": (
        "A scheduler decides which request is served next.",
        "A good scheduler keeps waiting times short.",
    ),
    "latency": ("Latency is the time from a question to its answer.", "Users like it to be short."),
    "throughput": (
        "Throughput is the amount of work done in one second.",
        "For a language model it is counted in tokens.",
    ),
    "a prompt": ("A prompt is the text that you give to a model.", "The model continues it."),
    "memory": (
        "Memory is the place where a computer keeps data that it is using.",
        "It is fast, but it is small.",
    ),
    "a disk": ("A disk keeps data when the power is off.", "It is slower than memory."),
    "a server": (
        "A server is a computer that answers requests from other computers.",
        "It waits until somebody asks for something.",
    ),
    "a client": ("A client is a program that sends requests to a server.", "Then it waits for the answer."),
    "a network": (
        "A network joins computers, so that they can send data to each other.",
        "The internet is the largest network.",
    ),
    "a page": ("A page is a small block of memory of a fixed size.", "The KV cache is cut into pages."),
    "a lease": (
        "A lease is a right to use something for a stated time.",
        "When the time is over, the right ends.",
    ),
    "a broker": (
        "A broker helps two workers to find each other.",
        "It grants leases, but it never carries the data.",
    ),
    "an operator": (
        "An operator is a program that looks after other programs in Kubernetes.",
        "It starts and stops pods as needed.",
    ),
    "a bug": ("A bug is a mistake in a program.", "A good test can find it."),
    "a test": ("A test runs a program and checks what it does.", "It fails when something is wrong."),
    "JSON": ("JSON is a simple text format for data.", "It has objects with keys and values."),
    "an API": (
        "An API is the way in which one program talks to another.",
        "It says what you can ask and what you get.",
    ),
    "streaming": (
        "Streaming sends an answer piece by piece.",
        "The reader does not have to wait for the end.",
    ),
    "a neural network": (
        "A neural network is made of many small sums in layers.",
        "It learns by changing its weights.",
    ),
    "a weight": ("A weight is a number that a model has learned.", "Large models have billions of weights."),
    "a thread": ("A thread is one line of work inside a program.", "Many threads can run at the same time."),
    "a database": (
        "A database keeps data in order, so that it can be found again.",
        "Programs ask it questions.",
    ),
    "load balancing": ("Load balancing shares work between many machines.", "No machine should be too busy."),
    "a deadline": (
        "A deadline is the time when an answer must be there.",
        "After it, the answer is of no use.",
    ),
    "a log": ("A log is a list of things that a program has done.", "It helps people to find mistakes."),
    "a metric": (
        "A metric is a number that shows how a program is doing.",
        "It is measured again and again.",
    ),
    "twolane": (
        "twolane is a platform that serves language models.",
        "Short and long prompts travel in two lanes.",
    ),
}
CONTRASTS = (
    (
        "prefill and decode",
        "Prefill reads the whole prompt at once. Decode writes the answer, one token at a time.",
    ),
    (
        "a queue and a stack",
        "In a queue the first item is served first. In a stack the last item is taken first.",
    ),
    (
        "memory and a disk",
        "Memory is fast and small. A disk is slow and large, and it keeps data when the power is off.",
    ),
    ("a CPU and a GPU", "A CPU runs programs step by step. A GPU does many small sums at the same time."),
    (
        "latency and throughput",
        "Latency is the time for one answer. Throughput is the amount of work done in one second.",
    ),
    ("a client and a server", "A client sends requests. A server answers them."),
)
WHY = (
    (
        "Why are there two lanes?",
        "Short prompts should not wait behind long prompts. So each kind has its own lane.",
    ),
    ("Why is a cache useful?", "A cache is useful because the same work is not done twice."),
    (
        "Why do models run on a GPU?",
        "A GPU does many small sums at the same time, and a model needs many sums.",
    ),
    ("Why do we batch requests?", "A batch of requests makes better use of the GPU than one request alone."),
    (
        "Why are prefill and decode separate?",
        "Prefill and decode need different things. In separate pools they do not disturb each other.",
    ),
)
