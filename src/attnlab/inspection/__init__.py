"""Looks into models: attention maps of what is read (`attention_maps`, `attended`), what heads do, what they
are needed for and find of syntax (`heads`, `ablation`, `syntactic_agreement`), position curves, receptive fields."""
