"""The clinical review: views of a run as plain functions, from stored numbers to tables, text and Plotly figures.

Nothing here trains, loads a model or imports Streamlit; ``apps/clinician`` draws what these functions return.
"""
