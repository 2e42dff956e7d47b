"""What `maskline.handlers.forward` needs to send webhooks: endpoints, messages, addresses, requests, answers."""
