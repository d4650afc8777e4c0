// Regular expressions: many small nodes, shared states, deep recursion.

#include "programs.hpp"

#include <cstddef>
#include <memory_resource>
#include <regex>
#include <string>
#include <vector>

namespace false_positives {

void regular_expressions() {
    std::pmr::string text;
    for (int i = 0; i < 40; ++i) {
        text += "Name" + std::to_string(i) + " <user" + std::to_string(i) + "@example" + std::to_string(i % 7) +
                ".org>, tel. +49-30-" + std::to_string(100000 + i * 37) + "; ";
    }
    using matches =
        std::match_results<std::pmr::string::const_iterator,
                           std::pmr::polymorphic_allocator<std::sub_match<std::pmr::string::const_iterator>>>;
    const std::vector<std::string> patterns{R"((\w+)@(\w+)\.(org|com))", R"(\+?\d{2}-\d+-(\d+))", R"(<([^<>]*)>)",
                                            R"((?:Name(\d+))\s+<(.*?)>)", R"([[:upper:]][[:alpha:]]+)"};
    std::size_t found = 0;
    for (int round = 0; round < 2; ++round) {
        for (const std::string& pattern : patterns) {
            for (const auto flags : {std::regex::ECMAScript, std::regex::ECMAScript | std::regex::icase,
                                     std::regex::ECMAScript | std::regex::optimize}) {
                const std::regex expression(pattern, flags);
                const std::regex copy = expression;
                matches m;
                auto from = text.cbegin();
                while (std::regex_search(from, text.cend(), m, copy)) {
                    found += m.size();
                    from = m[0].second;
                }
                const std::string s(text.begin(), text.begin() + 400);
                found += std::regex_replace(s, expression, "[$&]").size() % 2;
                for (std::sregex_iterator i(s.begin(), s.end(), expression), end; i != end; ++i) {
                    found += static_cast<std::size_t>(i->length(0) > 0);
                }
            }
        }
        for (const char* const wrong : {"(", "[a", "a{3", "*", "\\"}) {
            try {
                const std::regex never(wrong);
                expect(false, "regex: no exception");
            } catch (const std::regex_error&) {
                ++found;
            }
        }
    }
    expect(found > 500, "regex: matches");
}

}  // namespace false_positives
