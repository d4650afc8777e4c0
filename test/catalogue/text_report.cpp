#include "text_report.hpp"

#include <charconv>
#include <sstream>

namespace catalogue {

namespace {

constexpr std::string_view mark = "pmr_debug: ";
// Facts begin in this column, their words two before the first of them.
constexpr std::size_t indent = 2;
constexpr std::size_t fact_column = 13;

std::size_t number_at(std::string_view text, int base) {
    std::size_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    return error == std::errc{} && end != text.data() ? value : none;
}

std::string trimmed(std::string_view text) {
    return std::string(text.substr(0, text.find_last_not_of(' ') + 1));
}

}  // namespace

std::vector<text_report> parse_reports(std::string_view printed) {
    std::vector<text_report> all;
    std::istringstream lines{std::string(printed)};
    std::string* frames = nullptr;
    for (std::string line; std::getline(lines, line);) {
        if (line.starts_with(mark)) {
            all.emplace_back().headline = line.substr(mark.size());
            frames = nullptr;
        }
        if (all.empty()) {
            continue;
        }
        text_report& r = all.back();
        r.text.append(line).append("\n");
        const std::string_view rest = std::string_view(line).substr(line.size() < indent ? line.size() : indent);
        if (!line.starts_with("  ") || rest.empty()) {
            continue;
        }
        if (rest.starts_with("  ")) {
            if (frames != nullptr) {
                frames->append(rest).append("\n");
            }
        } else if (rest.ends_with(':')) {
            const std::string_view title = rest.substr(0, rest.size() - 1);
            frames = &r.traces[std::string(title.substr(0, title.find(" by thread ")))];
        } else if (line.size() > fact_column && line[fact_column - 1] == ' ') {
            r.facts.emplace(trimmed(rest.substr(0, fact_column - indent)), line.substr(fact_column));
        }
    }
    return all;
}

std::size_t number_after(std::string_view fact, std::string_view word) {
    const std::size_t at = fact.find(word);
    return at == std::string_view::npos ? none : number_at(fact.substr(at + word.size() + 1), 10);
}

std::size_t address_in(std::string_view fact) {
    const std::size_t at = fact.find("0x");
    return at == std::string_view::npos ? none : number_at(fact.substr(at + 2), 16);
}

}  // namespace catalogue
