"""What a variant does to a gene, in four kinds: truncating, missense, other (of the protein) and silent (not of it).

Kinds of the Mutation Annotation Format, of Sequence Ontology terms (VEP, snpEff) and of snpEff's older effects. Splice
donor and acceptor sites count as truncating; start and stop losses and in-frame changes as other.
"""

from collections.abc import Iterable

KINDS = ("truncating", "missense", "other", "silent")  # most severe first


def _table(**kinds: str) -> dict[str, str]:
    return {term: kind for kind, terms in kinds.items() for term in terms.split()}


MAF = _table(
    truncating="Frame_Shift_Del Frame_Shift_Ins Nonsense_Mutation Splice_Site",
    missense="Missense_Mutation",
    other="In_Frame_Del In_Frame_Ins Nonstop_Mutation Translation_Start_Site Start_Codon_SNP Start_Codon_Ins "
    "Start_Codon_Del Stop_Codon_Ins Stop_Codon_Del",
    silent="Silent Splice_Region Intron 3'UTR 5'UTR 3'Flank 5'Flank IGR RNA lincRNA Targeted_Region "
    "De_novo_Start_InFrame De_novo_Start_OutOfFrame COULD_NOT_DETERMINE",
)
TERMS = _table(
    truncating="stop_gained frameshift_variant splice_acceptor_variant splice_donor_variant transcript_ablation "
    "exon_loss_variant exon_loss",
    missense="missense_variant",
    other="start_lost stop_lost initiator_codon_variant inframe_insertion inframe_deletion protein_altering_variant "
    "conservative_inframe_insertion conservative_inframe_deletion disruptive_inframe_insertion "
    "disruptive_inframe_deletion rare_amino_acid_variant transcript_amplification "
    "bidirectional_gene_fusion gene_fusion",
    silent="synonymous_variant stop_retained_variant start_retained_variant start_retained intron_variant "
    "5_prime_UTR_variant 3_prime_UTR_variant upstream_gene_variant downstream_gene_variant intergenic_variant "
    "intergenic_region intragenic_variant non_coding_transcript_exon_variant non_coding_transcript_variant "
    "non_coding_exon_variant nc_transcript_variant NMD_transcript_variant mature_miRNA_variant splice_region_variant "
    "splice_donor_5th_base_variant splice_donor_region_variant splice_polypyrimidine_tract_variant "
    "coding_sequence_variant coding_transcript_variant incomplete_terminal_codon_variant TF_binding_site_variant "
    "TFBS_ablation TFBS_amplification regulatory_region_variant regulatory_region_ablation "
    "regulatory_region_amplification 5_prime_UTR_premature_start_codon_gain_variant 5_prime_UTR_truncation "
    "3_prime_UTR_truncation conserved_intergenic_variant conserved_intron_variant gene_variant transcript_variant "
    "exon_variant exon_region feature_elongation feature_truncation miRNA "
    " sequence_feature sequence_variant custom structural_interaction_variant "
    "protein_protein_contact",
)
EFFECTS = _table(
    truncating="STOP_GAINED FRAME_SHIFT SPLICE_SITE_ACCEPTOR SPLICE_SITE_DONOR EXON_DELETED RARE_STOP",
    missense="NON_SYNONYMOUS_CODING",
    other="NON_SYNONYMOUS_START START_LOST STOP_LOST CODON_CHANGE CODON_INSERTION CODON_DELETION RARE_AMINO_ACID "
    "CODON_CHANGE_PLUS_CODON_INSERTION CODON_CHANGE_PLUS_CODON_DELETION UTR_5_DELETED UTR_3_DELETED",
    silent="SYNONYMOUS_CODING SYNONYMOUS_START SYNONYMOUS_STOP NON_SYNONYMOUS_STOP INTRON INTRON_CONSERVED EXON "
    "UTR_5_PRIME UTR_3_PRIME START_GAINED UPSTREAM DOWNSTREAM INTERGENIC INTERGENIC_CONSERVED INTRAGENIC GENE "
    "TRANSCRIPT CDS SPLICE_SITE_REGION SPLICE_SITE_BRANCH SPLICE_SITE_BRANCH_U12 REGULATION MICRO_RNA "
    "CUSTOM NONE CHROMOSOME",
)


def worst(kinds: Iterable[str]) -> str:
    """The most severe kind."""
    return min(kinds, key=KINDS.index)


def kind_of(terms: Iterable[str], table: dict[str, str], unknown: set[str]) -> str:
    """The most severe kind of some terms; a term that the table lacks counts as silent and is added to ``unknown``."""
    kinds = ["silent"]
    for term in terms:
        if term in table:
            kinds.append(table[term])
        elif term:
            unknown.add(term)
    return worst(kinds)
