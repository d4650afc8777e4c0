#include "index.hpp"

#include <algorithm>
#include <fstream>

namespace demo {

namespace {

constexpr bool starts_word(char c) noexcept {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

constexpr bool continues_word(char c) noexcept {
    return starts_word(c) || (c >= '0' && c <= '9');
}

}  // namespace

word_index::word_index(const index_memory& memory)
    : text_memory_(memory.text), words_(memory.dictionary), names_(memory.names) {}

bool word_index::add_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = file ? std::streamoff{file.tellg()} : -1;
    if (size < 0) {
        return false;
    }
    std::pmr::string text(static_cast<std::size_t>(size), '\0', text_memory_);
    file.seekg(0);
    if (size != 0 && !file.read(text.data(), size)) {
        return false;
    }
    const auto number = static_cast<std::uint32_t>(names_.size());
    names_.emplace_back(path);
    bytes_ += text.size();
    add_text(text, number);
    return true;
}

void word_index::add_text(std::string_view text, std::uint32_t file) {
    std::uint32_t line = 1;
    const char* at = text.data();
    const char* const end = at + text.size();
    while (at != end) {
        if (starts_word(*at)) {
            const char* const begin = at;
            at = std::find_if_not(at, end, continues_word);
            add_word({begin, static_cast<std::size_t>(at - begin)}, {file, line});
        } else {
            line += *at == '\n' ? 1 : 0;
            ++at;
        }
    }
}

void word_index::add_word(std::string_view word, posting where) {
    auto found = words_.find(word);
    if (found == words_.end()) {
        found = words_.try_emplace(std::pmr::string(word, words_.get_allocator())).first;
    }
    found->second.push_back(where);
    ++postings_;
}

std::pmr::vector<const word_index::entry*> word_index::most_frequent(std::size_t count) const {
    std::pmr::vector<const entry*> entries(text_memory_);
    entries.reserve(words_.size());
    for (const entry& e : words_) {
        entries.push_back(&e);
    }
    count = std::min(count, entries.size());
    const auto middle = entries.begin() + static_cast<std::ptrdiff_t>(count);
    std::partial_sort(entries.begin(), middle, entries.end(), [](const entry* a, const entry* b) {
        // Words with equally many postings come in the order of the alphabet.
        return a->second.size() != b->second.size() ? a->second.size() > b->second.size() : a->first < b->first;
    });
    entries.erase(middle, entries.end());
    return entries;
}

std::uint64_t word_index::checksum() const noexcept {
    std::uint64_t sum = 0;
    for (const auto& [word, postings] : words_) {
        std::uint64_t one = word_hash{}(word);
        for (const posting& p : postings) {
            one = one * 31 + p.file;
            one = one * 31 + p.line;
        }
        sum += one;  // the order of words does not count
    }
    return sum;
}

}  // namespace demo
