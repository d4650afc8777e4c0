#pragma once

/// \file
/// The command line of word_index.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace demo {

enum class planted_bug {
    none,
    leak,
    double_free,
    wrong_size,
    wrong_alignment,
    overrun,
    use_after_free,
    foreign_thread,
    wrong_resource,
};

enum class shipped_policy { default_, fast, thorough, release };

struct options {
    planted_bug bug = planted_bug::none;
    shipped_policy policy = shipped_policy::default_;
    bool json = false;  ///< reports as JSON lines
    bool help = false;
    unsigned runs = 3;  ///< of each kind; the median counts
    std::vector<std::string> paths{"/usr/include"};
};

/// Returns: what the arguments say; nothing, after a message on standard error, if they make no sense.
std::optional<options> parse(int argc, const char* const* argv);

std::string_view policy_name(shipped_policy p);

void print_help(const char* program);

}  // namespace demo
