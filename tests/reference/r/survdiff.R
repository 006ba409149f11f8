# survdiff: log-rank and Peto-Peto tests, two to four groups; groups that nobody could die in; small tied cases.
args <- commandArgs(FALSE); source(file.path(dirname(sub("^--file=", "", grep("^--file=", args, value = TRUE))), "common.R"))

one <- function(time, event, group, rho) {
  fit <- survdiff(Surv(time, event) ~ group, rho = rho)
  list(rho = rho, statistic = fit$chisq, p_value = fit$pvalue, observed = fit$obs, expected = fit$exp)
}
both <- function(time, event, group) {
  c(list(group = as.integer(group)), list(tests = lapply(c(0, 1), function(rho) one(time, event, group, rho))))
}

data <- load_data()
sets <- list(
  lung = data$lung$x[, "sex"], veteran = as.integer(veteran$celltype), rossi = data$rossi$x[, "race"],
  gbsg = data$gbsg$x[, "grade"], pbc = as.integer(cut(data$pbc$x[, "age"], 4))
)
set.seed(20)
random <- lapply(1:60, function(k) {
  n <- sample(6:30, 1)
  groups <- 2 + k %% 3
  d <- list(time = sample(1:8, n, TRUE), event = c(TRUE, runif(n - 1) < .6), group = c(1:groups, sample(groups, n - groups, TRUE)))
  c(d[c("time", "event")], both(d$time, d$event, d$group))
})
# A third group that is censored before the first event: R leaves it out of the degrees of freedom.
gone <- list(time = c(5, 6, 7, 8, 9, 10, 1, 2), event = c(1, 1, 0, 1, 1, 0, 0, 0) == 1, group = c(1, 2, 1, 2, 1, 2, 3, 3))
write_fixture("survdiff", list(
  sets = lapply(setNames(names(sets), names(sets)), function(k) both(data[[k]]$time, data[[k]]$event, sets[[k]])),
  random = random,
  gone = c(gone[c("time", "event")], both(gone$time, gone$event, gone$group))
))
