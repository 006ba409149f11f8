# Likelihoods at given parameters: coxph without a step (score and martingale residuals), glm on person-periods.
args <- commandArgs(FALSE); source(file.path(dirname(sub("^--file=", "", grep("^--file=", args, value = TRUE))), "common.R"))

cox <- function(d, beta, ties) {
  x <- d$x
  fit <- coxph(surv_of(d) ~ x, ties = ties, init = beta, control = coxph.control(iter.max = 0))
  list(log_likelihood = fit$loglik[2], score = unname(colSums(as.matrix(residuals(fit, type = "score")))),
       martingale = unname(residuals(fit, type = "martingale")))
}

# Person-periods: one row per patient and interval begun; a censored interval weighs by the part of it that was lived.
person_periods <- function(d, edges) {
  frame <- data.frame(id = seq_along(d$time), time = d$time, event = as.numeric(d$event))
  long <- survSplit(Surv(time, event) ~ ., frame, cut = edges, episode = "interval")
  long <- long[long$interval <= length(edges), ]
  left <- c(0, edges)
  part <- (long$time - long$tstart) / (edges - left[-length(left)])[long$interval]
  data.frame(id = long$id, interval = long$interval, y = long$event, w = ifelse(long$event == 1, 1, part))
}

discrete <- function(d, edges, link) {
  long <- person_periods(d, edges)
  x <- scale(d$x)[long$id, ]
  k <- factor(long$interval, levels = seq_along(edges))
  step <- function(start, most) suppressWarnings(
    glm(long$y ~ 0 + k + x, family = binomial(link), weights = long$w, start = start,
        control = glm.control(epsilon = 1e-14, maxit = most)))
  fit <- step(NULL, 100)
  # glm stops when the deviance does; single steps go on until the coefficients do.
  for (more in 1:40) fit <- step(coef(fit), 1)
  level <- coef(fit)[seq_along(edges)]
  slope <- coef(fit)[-seq_along(edges)]
  list(level = unname(level), slope = unname(slope), log_likelihood = -deviance(fit) / 2)
}

# At parameters that are not the maximum: -log-likelihood by dbinom, and its derivative by each logit.
elsewhere <- function(d, edges) {
  long <- person_periods(d, edges)
  set.seed(40)
  logits <- matrix(round(rnorm(length(d$time) * length(edges), -1, 1.5), 3), ncol = length(edges))
  place <- cbind(long$id, long$interval)
  p <- plogis(logits[place])
  gradient <- 0 * logits
  gradient[place] <- long$w * (p - long$y)
  list(edges = edges, logits = logits, gradient = gradient,
       log_likelihood = sum(long$w * dbinom(long$y, 1, p, log = TRUE)))
}

data <- load_data()
grid <- function(d, k) as.numeric(unique(quantile(d$time[d$event], seq_len(k) / k, type = 1)))
set.seed(41)
write_fixture("losses", list(
  cox = lapply(data[c("lung", "veteran", "rossi", "gbsg")], function(d) {
    beta <- unname(round(runif(ncol(d$x), -1, 1) / apply(d$x, 2, sd), 3))
    c(list(beta = beta), lapply(c(efron = "efron", breslow = "breslow"), function(t) cox(d, beta, t)))
  }),
  discrete = lapply(data[c("lung", "veteran", "gbsg")], function(d) list(
    edges = grid(d, 5), logit = discrete(d, grid(d, 5), "logit"), cloglog = discrete(d, grid(d, 5), "cloglog"))),
  elsewhere = lapply(data[c("lung", "veteran")], function(d) elsewhere(d, grid(d, 4)))
))
