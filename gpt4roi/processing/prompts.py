"""Fixed texts, worded by us: the sentence that shows the image, and banks of questions for each kind of data.

Placeholders are filled with str.format: {region} a mention such as `<region1>`, {regions} several of them, {names}
class names, {name} one of them. A reader draws one entry of a bank with its own random generator.
"""

IMAGE_PREAMBLE = "The <image> provides an overview of the picture.\n"
"""Stands before the first question. Released models were trained with exactly this sentence."""

DETECTION_INSTRUCTION = (
    "You will be shown regions of the picture one after another, each of them marked by a box. "
    "Say which one of the following categories the object in the box belongs to, and answer with its name only. "
    "Categories: {names}.\n"
)
"""Before the first bare `<bbox>` of a detection data set."""

REFCOCO_INSTRUCTION = (
    "You will be shown regions of the picture one after another, each of them marked by a box. "
    "Write the short phrase by which a person would pick out just this object from all others in the picture.\n"
)
"""Before the first bare `<bbox>` of RefCOCO and RefCOCO+."""

REFCOCOG_QUESTIONS = (
    "How would you describe {region} so that nobody could take it for another object?",
    "Write one sentence that fits {region} and nothing else in the picture.",
    "What distinguishes {region} from everything around it?",
    "Please refer to {region} in a full sentence.",
    "Tell me what {region} is, precisely enough that I could point at it.",
    "Which words single out {region}?",
    "Give a referring expression for {region}.",
    "If I had to find {region} without a box, what should I look for?",
    "Describe {region} in a way that leaves no doubt which object is meant.",
    "Say what can be seen at {region}, so that it can be told apart from similar things.",
    "What exactly is shown at {region}?",
    "Put {region} into words for someone who has to find it.",
    "How could {region} be identified by its looks and its place?",
    "Name the object at {region} and what makes it recognisable.",
    "I am interested in {region}; which description belongs to it alone?",
    "Explain in one sentence which thing {region} is.",
    "Look at {region} and phrase a clear reference to it.",
    "Could you describe {region} unmistakably?",
    "What would you say to direct somebody's eyes to {region}?",
    "Give me a sentence about {region} that is true of no other part of the picture.",
)

FLICKR_CAPTION_QUESTIONS = (
    "The picture contains {regions}. What is going on in it?",
    "Given {regions}, describe the whole scene in a sentence.",
    "With {regions} in view, write a caption for the picture.",
    "These parts are marked: {regions}. How would you sum up the picture?",
    "Consider {regions}. What does the picture show?",
    "{regions} belong to one scene. What is it?",
    "Taking {regions} together, what is happening here?",
    "Please caption the picture, in which {regions} are marked.",
    "Look at {regions} and tell me what the picture is about.",
    "Use {regions} as a guide and describe the picture.",
    "I have marked {regions}. Which sentence describes the picture best?",
    "What story do {regions} tell together?",
    "Write a single sentence that covers {regions}.",
    "How do {regions} fit together in this picture?",
    "Describe what the people or things at {regions} are doing in the picture.",
    "Here are {regions}. Give a short description of the whole.",
    "Based on {regions}, what would be a good title sentence for the picture?",
    "Summarise the picture with its parts {regions}.",
    "The boxes mark {regions}. Say in one sentence what you see.",
    "Which situation do {regions} show?",
    "Tell me about the picture with regard to {regions}.",
    "Keeping {regions} in mind, what is the scene?",
    "Could you put the picture, with {regions}, into one sentence?",
    "Report what can be seen, including {regions}.",
    "Explain the picture to someone who cannot see it; it has {regions}.",
    "Starting from {regions}, describe the picture as a whole.",
    "What is the common scene of {regions}?",
    "Compose a caption in which {regions} all have their place.",
    "Please look at {regions} first, then describe the picture.",
    "What do you notice in this picture with {regions}?",
)
"""{regions}: a list such as `<region1>,<region2>`."""

FLICKR_REGION_QUESTIONS = (
    "What is at {region}?",
    "Which phrase of the caption is about {region}?",
    "Name what {region} shows.",
    "In a few words, what is {region}?",
    "What do you see at {region}?",
    "Please give a short phrase for {region}.",
    "Who or what is {region}?",
    "How is {region} called in the description?",
    "Say briefly what {region} contains.",
    "Which part of the scene is {region}?",
)

VISUAL_GENOME_QUESTIONS = (
    "Give a short description of {region}.",
    "What is there at {region}?",
    "Describe {region} in a few words.",
    "What can be seen in {region}?",
    "Caption {region}, please.",
    "Tell me what {region} shows.",
    "How would you describe the content of {region}?",
    "What does the box of {region} contain?",
    "Say in one phrase what is at {region}.",
    "Please look at {region}: what is it?",
    "Write a brief caption for {region}.",
    "What strikes you at {region}?",
    "Can you describe the area of {region}?",
    "Which thing, and in which state, is at {region}?",
    "Put what you see at {region} into a short phrase.",
    "What is depicted at {region}?",
    "I would like a short caption of {region}.",
    "Summarise {region} in a phrase.",
    "What is the content of {region}?",
    "Briefly, what does {region} show?",
)

DETECTED_REGION = "At <bbox> there seems to be a {name}."
"""One line a detected box, before the question of a dialogue."""

VCR_PREFIXES = (
    "The picture shows {regions}.\n",
    "Some of what can be seen is marked: {regions}.\n",
    "Please pay attention to {regions}.\n",
    "There are {regions} in the picture.\n",
    "The question is about a scene with {regions}.\n",
    "Here are the marked persons and things: {regions}.\n",
)

VCR_WHY_QUESTIONS = (
    "Why?",
    "Why do you think so?",
    "How do you know?",
    "What makes you say that?",
    "What is your reason?",
    "Can you give a reason for your answer?",
    "Please explain.",
    "Could you explain that?",
    "What in the picture tells you so?",
    "How did you come to this answer?",
    "What supports your answer?",
    "Which details led you to this?",
    "On what do you base that?",
    "What is the evidence?",
    "Why is that the case?",
    "How can you tell?",
    "Justify your answer, please.",
    "What are the grounds for this conclusion?",
    "What brought you to this conclusion?",
    "Please give your reasons.",
    "Why should I believe that?",
    "Where do you see that?",
    "What hints did you use?",
    "Tell me the reasoning behind your answer.",
    "What speaks for it?",
    "How is that visible in the picture?",
    "From what do you infer it?",
    "Explain how you arrived at that.",
    "What convinced you?",
    "Is there anything in the picture that shows it?",
    "What clues point to that?",
    "Why not something else?",
    "Walk me through your thinking.",
    "What did you notice that led to this answer?",
    "Name the reason for your answer.",
    "How would you defend your answer?",
    "What is behind your answer?",
    "What leads you to think that?",
    "Give me the explanation, please.",
)

PRESENCE_QUESTIONS = (
    "Is there any {name} in the picture?",
    "Can you see a {name} here?",
    "Does the picture show a {name}?",
    "Do you find a {name} in this picture?",
    "Is a {name} visible?",
    "Does any {name} appear in the scene?",
    "Would you say that there is a {name} in the picture?",
    "Has the picture got a {name} in it?",
    "Look carefully: is there a {name}?",
    "Is a {name} part of this scene?",
    "Tell me whether the picture contains a {name}.",
    "Check the picture for a {name}: is there one?",
    "Could there be a {name} somewhere in the picture?",
    "Please say whether a {name} can be seen.",
    "Among the things in the picture, is there a {name}?",
    "I am looking for a {name}. Is there one here?",
    "Did the photographer catch a {name}?",
    "Is at least one {name} to be found here?",
    "Am I right that there is a {name} in this picture?",
    "Does a {name} occur anywhere in the picture?",
)

PRESENCE_YES = (
    "Yes, there is a {name} in the picture.",
    "Yes, I can see a {name}.",
    "Yes, the picture shows a {name}.",
    "Indeed, a {name} is visible.",
    "Yes, a {name} is part of the scene.",
    "Yes, at least one {name} can be seen.",
    "There is; the picture contains a {name}.",
    "Yes, I have found a {name}.",
    "That is right, there is a {name}.",
    "Yes, a {name} appears in it.",
)

PRESENCE_NO = (
    "No, there is no {name} in the picture.",
    "No, I cannot see any {name}.",
    "No, the picture does not show a {name}.",
    "No {name} is visible.",
    "No, the scene has no {name} in it.",
    "No, not a single {name} can be seen.",
    "There is none; the picture contains no {name}.",
    "No, I have looked and found no {name}.",
    "That is not so, there is no {name}.",
    "No, a {name} does not appear in it.",
)
