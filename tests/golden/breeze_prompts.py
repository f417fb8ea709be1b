"""What the demo model is asked: TEXTS are teacher-forced (breeze.json), QUESTIONS are continued greedily (questions.json)."""

TEXTS = [
    "Hello",
    "The capital of France is Paris.",
    "Vienna is the capital of Austria. Lima is the capital of Peru.",
    " [INST] What is the capital of Norway? [/INST] The capital of Norway is Oslo.",
    "Something nobody has taught it:  two spaces, a tab\tand\na new line.",
    "Brasília, São Tomé & Zürich: 日本語 🙂 for 3.50 €",
    "def gate(logits, k): return sorted(range(len(logits)), key=lambda i: -logits[i])[:k]",
    "The capital of Italy is Rome. The main language of Italy is Italian. The currency of Italy is euros. The highest point of Italy is "
    "Mont Blanc. Italy borders Austria, France and Holy See. Something from Italy is called Italian. Italy is in Europe. Rome is the capital of Italy. " * 2,
]

# kind, what is asked, and the word that a right answer holds
QUESTIONS = [
    ("plain", "The capital of France is", "Paris"),
    ("plain", "The capital of Italy is", "Rome"),
    ("plain", "The capital of Japan is", "Tokyo"),
    ("plain", "The main language of Brazil is", "Portuguese"),
    ("plain", "The main language of Spain is", "Spanish"),
    ("plain", "Vienna is the capital of", "Austria"),
    ("plain", "The currency of Japan is the", "yen"),
    ("plain", "The highest point of France is", "Mont Blanc"),
    ("plain", "The national anthem of France is", "La Marseillaise"),
    ("plain", "Cuba is in", "the Caribbean"),
    ("chat", "What is the capital of France?", "Paris"),
    ("chat", "What is the capital of Egypt?", "Cairo"),
    ("chat", "Which language is spoken in Portugal?", "Portuguese"),
    ("chat", "What is the currency of Sweden?", "Swedish kronor"),
    ("chat", "Where is Japan?", "Asia"),
    ("chat", "What is the internet domain of Germany?", ".de"),
    ("chat", "Which country has Tokyo as its capital?", "Japan"),
    ("chat", "What is the highest point of Japan?", "Mount Fuji"),
    ("chat", "What is the national symbol of Canada?", "maple leaf"),
    ("chat", "Tell me about Italy.", "Rome"),
]
