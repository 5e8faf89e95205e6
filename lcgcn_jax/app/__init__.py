"""Web page to try the models on images, videos and a webcam (Gradio, extra `app`)."""
